"""The algorithm of Chang et al. (2020) on a finite process, in NumPy and PyTorch: what `benchmarks.rivals` measures.

A society of bidders in Vickrey auctions, with bids from Beta distributions and one PPO learner per primitive. The
settings, the order of minibatches and the counting of steps are those of a `jaxmarket.TrainConfig`; no other code is
shared with jaxmarket. All instances, bidders and networks are computed together:

- The networks of all modules, policy and value, are one stack of K = 2 M networks with one hidden layer and two
  outputs (the second output of a value network stays 0), with features first and the batch last.
- A rollout evaluates the networks by NumPy products. Whatever does not decide an action, such as prices, rewards and
  utilities, is computed once for the whole rollout, and so are the logarithms of the bids.
- All parameters are one vector, and one Adam step updates it. The learning rate and the norm of the gradient differ by
  network, which are element-wise products with constant vectors and matrices.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from jaxmarket import TrainConfig
from jaxmarket.environments import FiniteMDP, make
from jaxmarket.learners import PPO

__all__ = ["Batch", "TorchSociety"]

_EDGE, _FLOOR, _LARGEST = 1e-6, 1e-4, 20.0  # as in jaxmarket.policies and jaxmarket.learners.ppo
_SHIFT = math.log(math.e**2 - 1)  # softplus(_SHIFT) = 2: a network with output 0 bids from Beta(1, 1)
_MEAN_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-8  # of Adam


class Batch(NamedTuple):
    """Auctions of M modules with R members each, cut into C minibatches of N auctions."""

    inputs: np.ndarray  # f32 [C, I + 1, N]: one-hot states, and a row of ones for the biases
    bids: np.ndarray  # f32 [C, M, R, N]
    utility: np.ndarray  # f32 [C, M, R, N], 0 for losers


class TorchSociety:
    """A society and its training state.

    Args:
        config: settings of `ppo` with Beta bids in (0, 1) under the auction ``ccv``, for a deterministic `FiniteMDP`
            without exploration, bootstrap auctions and λ; one hidden layer.
        seed: of the initial parameters and of all bids.
        compiled: whether ``torch.compile`` compiles the loss; it needs a C++ compiler.
    """

    def __init__(self, config: TrainConfig, seed: int = 0, *, compiled: bool = False) -> None:
        settings = config.settings
        env, learner = make(config.env)[0], settings.learner
        assert isinstance(env, FiniteMDP)
        assert isinstance(learner, PPO)
        society = settings.society
        self.learner, self.discount, self.horizon = learner, float(settings.gamma), settings.horizon
        self.instances, self.members, self.modules = settings.instances, society.members, society.modules
        self.successor = env.transitions.argmax(-1)
        self.rewards, self.terminal, self.limit = env.rewards.astype(np.float32), env.terminal, env.horizon
        self.first = int(env.start.argmax())
        self.inputs = np.concatenate([np.eye(env.num_states), np.ones((1, env.num_states))]).astype(np.float32)
        self.generator = np.random.default_rng(seed)
        self.loss = torch.compile(self._loss) if compiled else self._loss
        self.updates = 0
        self.state = np.full(self.instances, self.first)
        self.time = np.zeros(self.instances, np.int64)
        self._build(width=society.policy.torso.hidden[-1], seed=seed)  # type: ignore[attr-defined]

    def _build(self, width: int, seed: int) -> None:
        """Parameters as views of one vector, and the constant vectors that tell networks apart."""
        modules, features = self.modules, len(self.inputs)
        networks = 2 * modules
        shapes = ((networks * width, features), (networks, 2, width), (networks, 2, 1))
        owner = torch.cat([torch.arange(networks).repeat_interleave(math.prod(s) // networks) for s in shapes])
        self.theta = torch.zeros(len(owner))
        parts = self.theta.split([math.prod(shape) for shape in shapes])
        self.parameters = [part.view(shape).requires_grad_() for part, shape in zip(parts, shapes, strict=True)]
        first, second, _ = self.parameters
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # LeCun's truncated normal; biases and the output layers of policies are 0
            normal = torch.nn.init.trunc_normal_
            for weights, inputs in ((first[:, :-1], features - 1), (second[modules:, :1], width)):
                deviation = inputs**-0.5 / 0.87962566103423978
                normal(weights, std=deviation, a=-2 * deviation, b=2 * deviation, generator=random)
        policy = owner < modules
        self.rates = torch.where(policy, self.learner.learning_rate, self.learner.value_learning_rate)
        self.penalty = torch.where(policy, 0.0, 2 * self.learner.value_l2)
        self.policy_networks = (torch.arange(modules)[:, None] == owner).float()  # [M, parameters]
        self.least = torch.where(torch.arange(networks) < modules, -math.inf, 0.0)[:, None, None]  # ReLU for values
        self.sign, self.ones = (torch.tensor(x)[:, None, None] for x in ([1.0, 1.0, -1.0], [1.0, 1.0, 2.0]))
        self.opposite = torch.tensor([1.0, -1.0])[:, None, None]
        self.mean, self.square, self.steps = torch.zeros_like(self.theta), torch.zeros_like(self.theta), 0

    def outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of all networks, f [K, 2, N], for inputs f [I + 1, N]."""
        first, second, bias = self.parameters
        hidden = (first @ inputs).view(2 * self.modules, -1, inputs.shape[-1])
        hidden = hidden * (hidden.detach() > self.least)  # cheaper to differentiate than a maximum
        return torch.baddbmm(bias, second, hidden)

    def beta(self) -> tuple[np.ndarray, np.ndarray]:
        """The parameters of the bids of all modules in the present states, f [M, B] each, in NumPy."""
        first, second, bias = (p.detach().numpy() for p in self.parameters)
        modules = self.modules
        hidden = first[: len(first) // 2] @ self.inputs[:, self.state]
        raw = second[:modules] @ hidden.reshape(modules, -1, hidden.shape[-1]) + bias[:modules]
        mean, spread = 1 / (1 + np.exp(-raw[:, 0])), np.logaddexp(0, raw[:, 1] + np.float32(_SHIFT))
        return np.maximum(mean * spread, _FLOOR), np.maximum((1 - mean) * spread, _FLOOR)

    def rollout(self) -> Batch:
        """Auctions and environment steps of all instances, in NumPy."""
        steps, shape = self.horizon, (self.modules, self.members, self.instances)
        bids = np.empty((steps, *shape), np.float32)
        states, winners = np.empty((2, steps, self.instances), np.int64)
        done = np.empty((steps, self.instances), bool)
        for t in range(steps):
            a, b = self.beta()
            bids[t] = self.generator.beta(a[:, None], b[:, None], shape)
            np.clip(bids[t], _EDGE, 1 - _EDGE, out=bids[t])
            states[t], winners[t] = self.state, bids[t].reshape(-1, self.instances).argmax(0)
            after, self.time = self.successor[self.state, winners[t] // self.members], self.time + 1
            done[t] = self.terminal[after] | (self.time >= self.limit)
            self.state = np.where(done[t], self.first, after)
            self.time[done[t]] = 0
        # What is paid decides no action, so it is computed for all steps together.
        everyone = bids.reshape(steps, -1, self.instances)
        price = np.partition(everyone, -2, axis=1)[:, -2]
        done[-1] = True  # nothing is paid across the end of a rollout
        proceeds = np.where(done, 0, np.roll(price, -1, 0))
        utility = np.zeros_like(everyone)
        won = self.rewards[states, winners // self.members] + self.discount * proceeds - price
        np.put_along_axis(utility, winners[:, None], won[:, None].astype(np.float32), 1)

        def cut(values: np.ndarray) -> np.ndarray:  # [T, ..., B] -> [C, ..., N], ordered by time, then by instance
            count = steps * self.instances // self.learner.minibatch
            values = values.reshape(count, -1, *values.shape[1:])
            return np.moveaxis(values, 1, -2).reshape(count, *values.shape[2:-1], -1)

        return Batch(np.moveaxis(self.inputs[:, cut(states)], 0, 1), cut(bids), cut(utility.reshape(bids.shape)))

    def _log_prob(self, raw: torch.Tensor, log_bids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-densities f [M, R, N] of bids, and the sum of the entropies of all modules and auctions.

        Args:
            raw: outputs of the policy networks, f [M, 2, N].
            log_bids: logarithms of the bids x and of 1 - x, f [2, M, R, N].
        """
        # a and b together, and one call of each special function for a, b and a + b.
        spread = torch.nn.functional.softplus(raw[:, 1] + _SHIFT)
        parameters = ((raw[:, 0] * self.opposite).sigmoid() * spread).clamp(min=_FLOOR)
        parameters = torch.cat([parameters, parameters.sum(0, keepdim=True)])
        log_gamma, less = torch.lgamma(parameters), parameters - self.ones
        log_beta = (log_gamma * self.sign).sum(0)
        entropy = ((log_gamma - less * torch.digamma(parameters)) * self.sign).sum()
        return (less[:2, :, None] * log_bids).sum(0) - log_beta[:, None], entropy

    def learn(self, batch: Batch) -> None:
        """One pass of PPO over the minibatches."""
        learner, modules = self.learner, self.modules
        inputs, bids, utility = (torch.from_numpy(array) for array in batch)
        log_bids = torch.stack([bids.log(), torch.log1p(-bids)], 1)  # [C, 2, M, R, N]
        with torch.no_grad():
            together = inputs.transpose(0, 1).reshape(inputs.shape[1], -1)  # all minibatches side by side: [I + 1, C N]
            raw = self.outputs(together)

            def beside(values: torch.Tensor) -> torch.Tensor:  # [C, ..., N] -> [..., C N]
                return values.movedim(0, -2).flatten(-2)

            def apart(values: torch.Tensor) -> torch.Tensor:
                return values.unflatten(-1, (len(inputs), -1)).movedim(-2, 0).contiguous()

            before = apart(self._log_prob(raw[:modules], beside(log_bids))[0])
            advantage = beside(utility) - raw[modules:, :1]
            deviation, mean = torch.std_mean(advantage, (1, 2), correction=0, keepdim=True)
            advantage = apart((advantage - mean) / (deviation + 1e-8))
        decays = max(0, (self.updates - learner.decay_after) // learner.decay_every)
        for _ in range(learner.epochs):
            for minibatch in zip(inputs, log_bids, utility, advantage, before, strict=True):
                self._step(minibatch, shrink=learner.decay**decays)
        self.updates += 1

    def _loss(
        self,
        inputs: torch.Tensor,
        log_bids: torch.Tensor,
        utility: torch.Tensor,
        advantage: torch.Tensor,
        before: torch.Tensor,
    ) -> torch.Tensor:
        """The sum of the losses of all modules, which share no parameters; without the penalty of value parameters."""
        learner, modules, auctions = self.learner, self.modules, inputs.shape[-1]
        raw = self.outputs(inputs)
        log_prob, entropy = self._log_prob(raw[:modules], log_bids)
        ratio = (log_prob - before).clamp(max=_LARGEST).exp()
        with torch.no_grad():  # a clipped ratio has no gradient
            weight = advantage * ((ratio - 1) * advantage.sign() <= learner.clip)
        error = (raw[modules:, :1] - utility).square()
        return (error - ratio * weight).sum() / (self.members * auctions) - learner.entropy / auctions * entropy

    def _step(self, minibatch: tuple[torch.Tensor, ...], shrink: float) -> None:
        """A step of Adam."""
        learner = self.learner
        gradients = torch.autograd.grad(self.loss(*minibatch), self.parameters)
        with torch.no_grad():
            gradient = torch.cat([g.flatten() for g in gradients])
            norm = (self.policy_networks @ gradient.square()).sqrt()
            gradient *= 1 + ((learner.max_norm / norm).clamp(max=1) - 1) @ self.policy_networks
            gradient.addcmul_(self.penalty, self.theta)
            self.steps += 1
            self.mean.lerp_(gradient, 1 - _MEAN_DECAY)
            self.square.mul_(_SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - _SQUARE_DECAY)
            scale = (self.square / (1 - _SQUARE_DECAY**self.steps)).sqrt_().add_(_EPSILON)
            rate = -shrink / (1 - _MEAN_DECAY**self.steps)
            self.theta.addcdiv_(self.mean * self.rates, scale, value=rate)

    def train(self, updates: int) -> None:
        """Rollouts and updates, ``instances`` × ``horizon`` auctions each."""
        for _ in range(updates):
            self.learn(self.rollout())

    def greedy_return(self) -> float:
        """The undiscounted return of an episode in which every bidder bids the mean of its distribution."""
        state, total = self.first, 0.0
        for _ in range(self.limit):
            self_state, self.state = self.state, np.array([state])
            a, b = self.beta()
            self.state = self_state
            action = int((a / (a + b)).argmax())
            total, state = total + float(self.rewards[state, action]), int(self.successor[state, action])
            if self.terminal[state]:
                break
        return total

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything that training changes, for `restore`."""
        arrays = {name: getattr(self, name).copy() for name in ("state", "time")}
        tensors = {name: getattr(self, name).clone() for name in ("theta", "mean", "square")}
        numbers = {name: getattr(self, name) for name in ("updates", "steps")}
        return {"arrays": arrays, "tensors": tensors, "numbers": numbers, "bids": self.generator.bit_generator.state}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go back to a `snapshot`."""
        for name, array in kept["arrays"].items():
            setattr(self, name, array.copy())
        with torch.no_grad():
            for name, tensor in kept["tensors"].items():
                getattr(self, name).copy_(tensor)
        for name, number in kept["numbers"].items():
            setattr(self, name, number)
        self.generator.bit_generator.state = kept["bids"]
