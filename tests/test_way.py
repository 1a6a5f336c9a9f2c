"""How many files of the package a reader meets on a row's way from a teacher to a saved student.

What alone finds the channel graph, and what alone reads a student's file back before it takes its place, is no part of
a row's way, and is counted apart. What a network prints while it is built is no row: the file that keeps it off the
screen is not counted.
"""

import json
import subprocess
import sys
import textwrap

MOST, MOST_TRACED, MOST_BACK = 18, 14, 3
SCRIPT = """
    import json, sys, tempfile

    import torchreid

    import oskt_torchreid as oskt

    teacher = torchreid.models.build_model("osnet_x0_25", num_classes=10, loss="softmax", pretrained=False)
    root, way, traced, back = oskt.__path__[0], set(), set(), set()
    tracing = reading = 0

    def note(frame, event, argument):
        global tracing, reading
        name = frame.f_code.co_filename
        if frame.f_code.co_name == "_check_written":
            reading += {"call": 1, "return": -1}.get(event, 0)
        if frame.f_code.co_name == "trace_module":
            tracing += {"call": 1, "return": -1}.get(event, 0)
        if name.startswith(root) and not name.endswith("/printing.py"):
            (back if reading else traced if tracing else way).add(name[len(root) + 1 :])

    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(note)
        chain = oskt.WeightChain.from_teacher(teacher, 0.5)
        oskt.save_student(oskt.expand(chain, width=0.75), f"{folder}/student.pth")
        sys.setprofile(None)
    print(json.dumps([sorted(way), sorted(traced - way), sorted(back - way - traced)]))
"""


def test_the_way_of_a_row_passes_few_files():
    script = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    files, traced, back = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    print(f"\n{len(files)} files:", *files, f"{len(traced)} to trace:", *traced, sep="\n  ")
    print(f"{len(back)} to read it back:", *back, sep="\n  ")
    assert len(files) <= MOST and len(traced) <= MOST_TRACED and len(back) <= MOST_BACK
    rooms = {name.split("/")[0] for name in (*files, *traced, *back)}
    assert {"graph", "chain"} <= rooms <= {"graph", "chain", "files", "host", "networks.py"}
