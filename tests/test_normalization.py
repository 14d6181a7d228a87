import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_canine.normalization_domain_canine import REASONS, InvalidDomain, normalize_domain


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("example.com", "example.com"),
        ("  Example.COM.\r\n", "example.com"),
        ("\ufeffexample.com", "example.com"),
        ("münchen.de", "xn--mnchen-3ya.de"),
        ("MÜNCHEN.DE", "xn--mnchen-3ya.de"),
        ("faß.de", "xn--fa-hia.de"),
        ("例え。jp", "xn--r8jz45g.jp"),
        ("r3---sn-4g5.com", "r3---sn-4g5.com"),
        ("xn--53h.com", "xn--53h.com"),
        ("münchen.xn--53h", "xn--mnchen-3ya.xn--53h"),
        ("1.com", "1.com"),
        ("a.b1", "a.b1"),
        ("1.2.3.a4", "1.2.3.a4"),
        ("a." + "b" * 63, "a." + "b" * 63),
    ],
)
def test_valid_names(text, name):
    assert normalize_domain(text) == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \t\r\n", "empty"),
        ("\ufeff", "empty"),
        ("com", "one_label"),
        ("com.", "one_label"),
        ("a b.com", "bad_character"),
        ("user@example.com", "bad_character"),
        ("under_score.com", "bad_character"),
        ("example.com:80", "bad_character"),
        ("☃.net", "bad_character"),
        ("-a.com", "bad_label"),
        ("a-.com", "bad_label"),
        ("a..com", "bad_label"),
        (".com", "bad_label"),
        ("a.com..", "bad_label"),
        ("a.1", "bad_label"),
        ("a." + "b" * 64, "too_long"),
        (".".join(["a" * 60] * 5), "too_long"),
        ("ü" * 80 + ".com", "too_long"),
        ("1.2.3.4", "ip_address"),
        ("::1", "ip_address"),
        ("[2001:db8::1]", "ip_address"),
        ("https://example.com", "url"),
        ("example.com/path", "url"),
        ("https://münchen.de", "url"),
        ("\udcffexample.com", "undecodable"),
        ("exa\ufffdmple.com", "undecodable"),
    ],
)
def test_invalid_names_carry_their_reason(text, reason):
    with pytest.raises(InvalidDomain) as caught:
        normalize_domain(text)
    assert caught.value.reason == reason and reason in REASONS


def test_invalid_domain_survives_pickling():
    error = pickle.loads(pickle.dumps(InvalidDomain("a b", "bad_character")))
    assert (error.text, error.reason) == ("a b", "bad_character")


@given(
    st.one_of(
        st.text(),
        st.text("aZ9-. ü\u3002/:", max_size=30),
        st.binary().map(lambda b: b.decode("utf-8", "surrogateescape")),
    )
)
def test_any_text_is_a_stable_name_or_a_known_reason(text):
    try:
        name = normalize_domain(text)
    except InvalidDomain as error:
        assert error.reason in REASONS
    else:
        assert normalize_domain(name) == name
        assert name.isascii() and name == name.lower() and len(name) <= 253
        labels = name.split(".")
        assert len(labels) >= 2 and not labels[-1].isdigit()
        assert all(1 <= len(label) <= 63 and label[0] != "-" and label[-1] != "-" for label in labels)
