"""The folder that an export makes: what was there stays until the new one is whole."""

import os

import pytest

from domain_canine.errors import UserError
from domain_canine.export_folder import made_whole, refuse_other_folder


@pytest.mark.parametrize("there", [["config.json"], ["config.json", "tokenizer.json"], ["model.onnx", "notes.txt"]])
def test_only_an_earlier_export_is_replaced(tmp_path, there):
    """A configuration alone may be anybody's, and beside an export may be something of the user's own."""
    for name in there:
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="no export of this program"):
        refuse_other_folder(tmp_path, "model.onnx", ("model_int8.onnx",), overwrite=True)
    (tmp_path / "model.onnx").write_text("")
    (tmp_path / "notes.txt").unlink(missing_ok=True)
    refuse_other_folder(tmp_path, "model.onnx", ("model_int8.onnx",), overwrite=True)
    with pytest.raises(UserError, match="add --overwrite"):
        refuse_other_folder(tmp_path, "model.onnx", ("model_int8.onnx",), overwrite=False)


def test_a_signal_between_the_old_folder_and_the_new_one_leaves_the_old(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    moved, replace = [], os.replace

    def interrupted(source, target):
        moved.append(target)
        if len(moved) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("domain_canine.export_folder.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt), made_whole(tmp_path / "out") as whole:
        (whole / "file").write_text("new")
    assert (tmp_path / "out" / "file").read_text() == "old" and len(moved) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
