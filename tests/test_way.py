"""How many files of the package a reader meets on a row's way from a teacher to a saved student."""

import json
import subprocess
import sys
import textwrap

MOST = 25
SCRIPT = """
    import json, sys, tempfile

    import torchreid

    import oskt_torchreid as oskt

    teacher = torchreid.models.build_model("osnet_x0_25", num_classes=10, loss="softmax", pretrained=False)
    root, files = oskt.__path__[0], set()

    def note(frame, event, argument):
        name = frame.f_code.co_filename
        if name.startswith(root):
            files.add(name[len(root) + 1 :])

    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(note)
        chain = oskt.WeightChain.from_teacher(teacher, 0.5)
        oskt.save_student(oskt.expand(chain, width=0.75), f"{folder}/student.pth")
        sys.setprofile(None)
    print(json.dumps(sorted(files)))
"""


def test_the_way_of_a_row_passes_few_files():
    script = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    files = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    print(f"\n{len(files)} files:", *files, sep="\n  ")
    assert len(files) <= MOST
    rooms = {name.split("/")[0] for name in files}
    assert {"graph", "chain"} <= rooms <= {"graph", "chain", "files", "host", "networks.py"}
