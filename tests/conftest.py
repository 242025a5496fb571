"""What holds for every test: no window, no display, one thread."""

import os

os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"  # pygame's windows open nowhere

import torch

torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives
