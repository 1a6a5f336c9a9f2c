"""The costs and the accuracy of the method.

oskt bench refine      one refinement step against one of the teacher alone
oskt bench expand      expansion from a loaded chain
oskt bench accuracy --config-file configs/comparison/resnet18.yaml
oskt bench views       drawing the sets of a batch, against a scan of the data set
oskt bench vkd-ablation --config-file configs/vkd_synthped.yaml
oskt bench vkd-controls --config-file configs/vkd_synthped.yaml
oskt bench vkd         one step of distillation against a teacher's forward pass and a student's step
oskt bench latency log/oskt_osnet
oskt bench fleet log/oskt_osnet   queries of every width against galleries of every other
oskt bench threshold log/oskt_osnet   similarities at which a share of impostors passes
oskt bench gallery     ranking 100,000 lifted features, beside faiss, and what lifting adds
oskt bench rank        evaluation at the sizes of Market-1501 and MSMT17, against torchreid's
oskt bench untrained log/oskt_osnet/chain.safetensors --config-file configs/oskt_osnet.yaml
"""

import argparse
from collections.abc import Sequence

import torch

from ..cli import parse_with_imports, parser_of, positive, subcommand
from .bench_accuracies import add_accuracies
from .bench_costs import add_costs


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("bench", __doc__)
    parser.add_argument("--threads", type=positive, help="threads of torch (default: its own choice)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_costs(commands)
    add_accuracies(commands)
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of all subcommands; `run` is the chosen one."""
    return parse_with_imports(make_parser(), arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    parsed = parse_arguments(arguments)
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    return subcommand(parsed)
