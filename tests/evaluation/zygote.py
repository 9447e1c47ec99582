"""Forks evaluations that a test may kill: importing torch once is enough, and a fork starts in milliseconds.

Reads one run directory a line, forks a child that evaluates into it and writes its pid. Then, for every line `peek`,
whether the child has ended; a line `reap` waits for that and has its exit status written.
"""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # before any parallel region: a thread pool would not survive the fork

from conftest import linear_problem  # noqa: E402


def main() -> None:
    problem = linear_problem(n=120, seed=3)
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            problem.run(Path(line.strip()), ["fgsm", "apgd-ce", "square"], params={"square.n_queries": 400})
            os._exit(0)
        print(pid, flush=True)  # noqa: T201
        while sys.stdin.readline() == "peek\n":
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            print(int(ended), flush=True)  # noqa: T201
        print(os.waitpid(pid, 0)[1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
