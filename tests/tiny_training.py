"""The program with a recipe that takes no time, as `torchrun` starts it; it may kill itself.

MMCCD_TEST_KILL="7 0 1" kills the processes 0 and 1 in step 7, where the others wait for them.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace

import torch
from training_data import SMALL_DENOISER, tiny_recipe

from mmccd_cli.cli.app import app
from mmccd_cli.config import TrainingConfig
from mmccd_cli.training import recipes, runtime, trainer


def main() -> None:
    """Run the command of the command line."""
    torch.set_num_threads(1)
    small = tiny_recipe(cycles=recipes.CYCLES[:1], denoiser=replace(SMALL_DENOISER, dropout=0.3))
    training = replace(small.training, iterations=12, batch_size=5, warmup_iterations=0)
    recipes.RECIPES["compact"] = replace(small, training=training)
    make, rate_at = runtime.make_runtime, trainer.learning_rate_at
    runtime.make_runtime = lambda *how: replace(make(*how), report_every=1, checkpoint_every=2)
    step, *ranks = map(int, os.environ.get("MMCCD_TEST_KILL", "-1").split())

    def rate_or_death(iteration: int, config: TrainingConfig) -> float:
        if iteration == step and int(os.environ["RANK"]) in ranks:
            os.kill(os.getpid(), signal.SIGKILL)
        return rate_at(iteration, config)

    trainer.learning_rate_at = rate_or_death
    app(sys.argv[1:])


if __name__ == "__main__":
    main()
