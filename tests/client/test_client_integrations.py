"""A tool whose package is missing: the module that needs it says the exact pip line."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "hidden", "extra"),
    [
        ("cvat_function", "cvat_sdk", "cvat"),
        ("fiftyone_model", "fiftyone", "fiftyone"),
        ("napari_widget", "magicgui", "napari"),
    ],
)
def test_a_missing_tool(module: str, hidden: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"slime_client.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for known in [each for each in sys.modules if each.split(".")[0] == hidden]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'slime-serve\[{extra}\]'"):
        found = importlib.import_module(name)
        found.widget()  # the only one that imports its tool when it is used
