import pytest

from domain_canine.tokenization_domain_canine import CLS, MASK, SEP, DomainCanineTokenizer


def test_ids_are_code_points_framed_by_cls_and_sep(tokenizer):
    assert tokenizer("ab.de").input_ids == [CLS, 97, 98, 46, 100, 101, SEP]
    assert list(tokenizer("ab.de")) == ["input_ids", "attention_mask"]


def test_ascii_is_lower_cased_and_nothing_else(tokenizer):
    assert tokenizer.decode(tokenizer("ExÄm.COM").input_ids, skip_special_tokens=True) == "exÄm.com"


def test_mask_in_a_text_is_one_code_point(tokenizer):
    ids = tokenizer("EXAM[MASK]LE.com").input_ids
    assert ids[5] == MASK == tokenizer.mask_token_id and len(ids) == 13
    assert tokenizer(f"exam{chr(MASK)}le.com").input_ids == ids
    assert tokenizer.decode(ids) == "[CLS]exam[MASK]le.com[SEP]"
    # A mask after a space keeps the space: every character counts.
    assert tokenizer("a [MASK]").input_ids[2:4] == [32, MASK]


def test_padding_and_truncation(tokenizer):
    batch = tokenizer(["a.de", "x" * 300 + ".de"], padding=True, truncation=True, return_tensors="pt")
    assert batch.input_ids.shape == (2, 128)
    assert batch.attention_mask.sum(1).tolist() == [6, 128]


@pytest.mark.parametrize("mask", [MASK, CLS, 0xE123])
def test_saving_keeps_the_mask(tmp_path, mask):
    DomainCanineTokenizer(mask_code_point=mask, model_max_length=64).save_pretrained(tmp_path)
    loaded = DomainCanineTokenizer.from_pretrained(tmp_path)
    assert loaded.mask_token_id == mask and loaded.model_max_length == 64
    assert loaded.get_vocab()["[MASK]"] == mask and loaded.bos_token is None and loaded.eos_token is None
    assert loaded("a[MASK]").input_ids == [CLS, 97, mask, SEP]
    assert (loaded.cls_token_id, loaded.sep_token_id, loaded.pad_token_id) == (CLS, SEP, 0)


def test_vocabulary_lists_the_classes_only(tokenizer):
    """And so ``targets=`` of a pipeline is quick: all code points would take 0.6 s."""
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == 128 + 4 == len(DomainCanineTokenizer(vocab_size=300).get_vocab()) - 172
    assert vocabulary["a"] == 97 and vocabulary["[MASK]"] == MASK and tokenizer.vocab_size == 128
