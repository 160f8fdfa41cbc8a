"""Benchmarks of speed and stress programs: ``python -m benchmarks NAME``, in a checkout."""

__all__ = ["PROGRAMS", "SPEED"]

SPEED = {
    "step": "rollouts, compared with the same environment and networks without a market",
    "train": "complete training, compared with a monolithic agent and Stable-Baselines3; many seeds",
    "images": "training on images, compared with single agents with as many parameters",
    "scale": "growth of time and memory with bidders, instances and width",
    "population": "births, deaths and auctions of up to thousands of agents in one population",
    "equilibrium": "equilibria of 1,024 agents and 64 goods, one and 256 at once, compared with independent solvers",
    "firms": "networks trained by profit, compared with backpropagation",
    "compile": "import, tracing and compiling against the size of the program",
    "roofline": "training, compared with the device's arithmetic and memory limits",
}
"""What each benchmark of speed measures. The module of that name has ``run(quick) -> Report``."""

PROGRAMS = {
    "rivals": "training, compared with the paper's algorithm in NumPy and PyTorch",
    "accelerator": "tests and measurements on one accelerator, within eight minutes",
    "scoreboard": "returns of societies and single agents on other libraries' tasks",
    "fuzz": "random and invalid inputs for all public entry points",
    "sigkill": "runs that are killed and interrupted at random moments, and resumed",
    "soak": "memory and money of markets that run for long",
}
"""What each other program does. The module of that name has ``main(arguments) -> int``."""
