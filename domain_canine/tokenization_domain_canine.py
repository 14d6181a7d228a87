"""Text to Unicode code points and back: CANINE has no vocabulary to learn."""

from transformers import AddedToken, PreTrainedTokenizer

PAD = 0
# CANINE's own special code points, from the Unicode private-use area (upstream: special_codepoints.py).
CLS = 0xE000
SEP = 0xE001
MASK = 0xE003

# "Lower-cases ASCII and leaves the rest alone" is narrower than str.lower().
_LOWER_ASCII = {code_point: code_point + 32 for code_point in range(ord("A"), ord("Z") + 1)}


class DomainCanineTokenizer(PreTrainedTokenizer):
    """A tokenizer whose ids are code points: ``exam[MASK]le.com`` is ``[CLS] e x a m U+E003 l e . c o m [SEP]``.

    ASCII letters are lower-cased, as registered names are; nothing else is changed (``normalize_domain`` cleans).
    ``[MASK]``, ``[CLS]``, ``[SEP]`` and ``[PAD]`` in a text are understood as the special code points.

    Args:
        vocab_size: how many code points ``get_vocab`` lists; the classes of the model's head. Any code point is a
            valid input.
        mask_code_point: what ``[MASK]`` stands for. U+E000, CANINE's [CLS], reproduces an earlier program.
        model_max_length: longest input, [CLS] and [SEP] included.
    """

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_size: int = 128, mask_code_point: int = MASK, model_max_length: int = 128, **kwargs):
        names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        self._special = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": mask_code_point}
        self._vocab_size = vocab_size
        for role, name in names.items():
            kwargs[role] = AddedToken(name, normalized=False, special=True)
        # CANINE has no beginning or end beside [CLS] and [SEP]; the Trainer copies these two into the config.
        kwargs["bos_token"] = kwargs["eos_token"] = None
        kwargs["token_type_ids_pattern"] = "all_zeros"
        kwargs["special_tokens_pattern"] = "cls_sep"
        super().__init__(
            vocab_size=vocab_size, mask_code_point=mask_code_point, model_max_length=model_max_length, **kwargs
        )
        # Where two special names share a code point (a mask of U+E000), the base class would know but one of them.
        self._update_trie(list(self._special))

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def get_vocab(self) -> dict[str, int]:
        """The head's classes and the special names; all 1,114,112 code points would take 0.6 s a call."""
        return {chr(code_point): code_point for code_point in range(self._vocab_size)} | self._special

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return list(text.translate(_LOWER_ASCII))

    def _convert_token_to_id(self, token: str) -> int:
        return self._special[token] if token in self._special else ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        return ()
