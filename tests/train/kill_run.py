"""`unclip train …` that kills itself in the middle of a step: kill_run.py STEPS ARGUMENTS…"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from unclip.train.cli import main
from unclip.train.tasks import task_class


def kill_after(stage: str, steps: int) -> None:
    """SIGKILL this process in step `steps` (0-based) of the stage."""
    task, done = task_class(stage), []
    original = task.loss

    def loss(self: Any, *arguments: Any) -> Any:
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(None)
        return original(self, *arguments)

    task.loss = loss  # type: ignore[method-assign]


if __name__ == "__main__":
    kill_after(sys.argv[2], int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
