"""The notebook of the documentation runs as it is written."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_quick_start(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in book.cells), "the repository has it without outputs"
    client.NotebookClient(book, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    printed = [[out for out in cell.get("outputs", ()) if out.get("name") == "stdout"] for cell in book.cells]
    said = ["".join(out["text"] for out in outs) for outs in printed]
    run, files, widths, choice, ranked = (text for text in said if text)
    assert "loss_x" in run and "teacher: mAP" in run and run.splitlines()[-1].split()[0] == "width=0.75"
    assert "report.html" in files and "chain.safetensors" in files
    assert widths.count("parameters") == 4 and choice.startswith("width ratio ") and "mAP" in ranked
    assert (tmp_path / "log" / "quickstart" / "mine.pth").is_file()
