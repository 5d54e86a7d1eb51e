"""Reference values for training/src/rl: losses and gradients in PyTorch (f64), GAE and whitening as
TRL defines them, and a direct transcription of DRBO's Algorithm 1.

    python tests/reference/training_losses.py > tests/fixtures/training/losses.json
"""

import json
import math
import platform

import torch

SEED = 20261121


def masked_mean(x, mask):
    return (x * mask).sum() / mask.sum()


def listed(x):
    return x.detach().double().tolist()


def policy_and_value(generator, batch, length, clip):
    """PPO on a padded [batch, length] problem; padding holds garbage that must not matter."""

    def normal(scale):
        return torch.randn(batch, length, generator=generator, dtype=torch.float64).mul(scale).float()

    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    mask = (torch.arange(length)[None] < lengths[:, None]).float()
    new = normal(0.4) - 2
    old = new + normal(0.25)
    advantages, values = normal(1), normal(1)
    old_values, returns = values + normal(0.3), normal(1)
    out = {
        "shape": [batch, length],
        "mask": listed(mask),
        "clip": clip,
        "log_probs": listed(new),
        "old": listed(old),
        "advantages": listed(advantages),
        "values": listed(values),
        "old_values": listed(old_values),
        "returns": listed(returns),
    }
    mask = mask.double()

    lp = new.double().requires_grad_()
    ratio = torch.exp(lp - old.double())
    free = -advantages.double() * ratio
    clipped = -advantages.double() * torch.clamp(ratio, 1 - clip, 1 + clip)
    loss = masked_mean(torch.max(free, clipped), mask)
    loss.backward()
    out["policy"] = {
        "loss": loss.item(),
        "gradient": listed(lp.grad),
        "clip_fraction": masked_mean((clipped > free).double(), mask).item(),
        "approximate_kl": 0.5 * masked_mean((lp - old.double()) ** 2, mask).item(),
    }

    v = values.double().requires_grad_()
    near = old_values.double() + torch.clamp(v - old_values.double(), -clip, clip)
    free, clipped = (v - returns.double()) ** 2, (near - returns.double()) ** 2
    loss = 0.5 * masked_mean(torch.max(free, clipped), mask)
    loss.backward()
    out["value"] = {
        "loss": loss.item(),
        "gradient": listed(v.grad),
        "clip_fraction": masked_mean((clipped > free).double(), mask).item(),
    }

    lp = new.double().requires_grad_()
    loss = -(lp * advantages.double() * mask).sum() / batch
    loss.backward()
    out["remax"] = {"loss": loss.item(), "gradient": listed(lp.grad)}
    return out


def advantages(generator, gamma, lam):
    """TRL's PPOTrainer: KL-penalised rewards, reversed-time GAE, unbiased masked whitening."""
    responses = []
    for length in (1, 4, 7):
        kl = torch.randn(length, generator=generator).mul(0.1)
        values = torch.randn(length, generator=generator)
        score = torch.randn(1, generator=generator).item()
        rewards = -0.2 * kl.double()
        rewards[-1] += score
        last, reverse = 0.0, []
        for t in reversed(range(length)):
            next_value = values[t + 1].double() if t < length - 1 else 0.0
            delta = rewards[t] + gamma * next_value - values[t].double()
            last = delta + gamma * lam * last
            reverse.append(last)
        adv = torch.stack(reverse[::-1])
        responses.append(
            {
                "kl": listed(kl),
                "values": listed(values),
                "score": score,
                "rewards": listed(rewards),
                "advantages": listed(adv),
                "returns": listed(adv + values.double()),
            }
        )
    flat = torch.cat([torch.tensor(r["advantages"], dtype=torch.float64) for r in responses])
    white = (flat - flat.mean()) * torch.rsqrt(flat.var(unbiased=True) + 1e-8)
    return {"gamma": gamma, "lambda": lam, "kl_coefficient": 0.2, "responses": responses, "whitened": listed(white)}


def drbo(generator, n, strategy, normalisation, dominant, steps, every, shift=1.0, floor=1e-3, low=0.0, lead=None):
    """Algorithm 1 as printed, with the decisions on x̂ ≤ 0 of inverse and on the lead of the dominant
    objective. Without a normalisation: eq. 5, the sum for inverse and softmax for delta."""
    preset = torch.rand(n, generator=generator, dtype=torch.float64) + 0.2
    if dominant is not None:
        preset[dominant] = preset.max() + 0.05
    preset = (n * preset / preset.sum()).tolist()
    column = [w / sum(preset) for w in preset]
    if dominant is not None:
        others = max(w for j, w in enumerate(column) if j != dominant)
        margin = (column[dominant] - others) / 2 if lead is None else lead
    softmax = (normalisation or {"inverse": "sum", "delta": "softmax"}.get(strategy)) == "softmax"
    weights, counts, history = list(column), [1] * n, []
    previous, realised, floored = [0.0] * n, [0.0] * n, 0
    trace = []
    for t in range(1, steps + 1):
        u = torch.rand(1, generator=generator, dtype=torch.float64).item()
        drawn, total = n - 1, 0.0
        for j in range(n):
            total += weights[j]
            if u < total:
                drawn = j
                break
        counts[drawn] += 1
        batch = (torch.randn(n, generator=generator, dtype=torch.float64) * 0.7 + low + 0.02 * t).tolist()
        history.append(batch)
        realised = [a + b for a, b in zip(realised, weights, strict=True)]
        if t % every == 0 and strategy != "average":
            mean = [sum(h[j] for h in history) / t for j in range(n)]
            x = [m + 1 for m in mean] if strategy == "inverse" else [m - p for m, p in zip(mean, previous)]
            x = [xj + math.sqrt(2 * math.log(t) / c) for xj, c in zip(x, counts)]
            if strategy == "inverse":
                least = min(0.0, min(x))
                x = [xj - shift * least for xj in x]
                floored += sum(xj < floor for xj in x)
                x = [max(xj, floor) for xj in x]
            z = [w / xj if strategy == "inverse" else w * xj for w, xj in zip(preset, x)]
            if softmax:
                top = max(z)
                z = [math.exp((zj - top) / (0.01 * t)) for zj in z]
            weights = [zj / sum(z) for zj in z]
            if dominant is not None:
                weights = project(weights, column, dominant, margin)
            previous = mean
        trace.append({"uniform": u, "drawn": drawn, "batch": batch, "weights": list(weights)})
    return {
        "strategy": strategy,
        "normalisation": normalisation,
        "every": every,
        "shift": shift,
        "floor": floor,
        "lead": lead,
        "dominant": dominant,
        "preset": preset,
        "trace": trace,
        "floored": floored,
        "realised": [r / steps for r in realised],
    }


def project(weights, column, own, margin):
    """The first point of the segment weights → column, found by bisection, where `own` leads by the margin."""

    def leads(s):
        w = [a + s * (b - a) for a, b in zip(weights, column)]
        return all(w[own] - w[j] >= margin for j in range(len(w)) if j != own)

    if leads(0.0):
        return weights
    low, high = 0.0, 1.0
    for _ in range(200):
        mid = (low + high) / 2
        low, high = (low, mid) if leads(mid) else (mid, high)
    w = [a + high * (b - a) for a, b in zip(weights, column)]
    return [x / sum(w) for x in w]


def gdpo(generator, objectives, prompts, samples):
    """GDPO as TRL computes it (`multi_objective_aggregation="normalize_then_sum"`): each reward normalised
    within its group, weighed, added, normalised over the batch; std is unbiased, ε = 1e-4."""
    rewards = torch.randn(prompts * samples, objectives, generator=generator, dtype=torch.float64)
    rewards = rewards * torch.tensor([10.0**j for j in range(objectives)], dtype=torch.float64)
    # A group whose answers all earn the same says nothing.
    rewards[:samples, 0] = 0.5
    weights = torch.rand(objectives, generator=generator, dtype=torch.float64)
    grouped = rewards.view(prompts, samples, objectives)
    advantages = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    summed = (advantages.view(-1, objectives) * weights).sum(1)
    return {
        "samples": samples,
        "weights": listed(weights),
        "rewards": rewards.T.tolist(),
        "advantages": listed((summed - summed.mean()) / (summed.std() + 1e-4)),
    }


def modpo(generator, objectives, samples, own, beta):
    """MODPO's loss, summed over the pairs best-worst, second best-second worst, ... by the own reward, with
    autograd for the weights: d loss/d log π of a response."""
    rewards = torch.randn(samples, objectives, generator=generator, dtype=torch.float64)
    weights = torch.rand(objectives, generator=generator, dtype=torch.float64) + 0.1
    weights = weights / weights.sum()
    reference = torch.randn(samples, generator=generator, dtype=torch.float64) - 20
    log_probs = (reference + torch.randn(samples, generator=generator, dtype=torch.float64)).requires_grad_()
    order = sorted(range(samples), key=lambda i: -rewards[i, own].item())
    ratio = log_probs - reference
    loss = 0.0
    for better, worse in zip(order[: samples // 2], order[::-1], strict=False):
        gap = rewards[better] - rewards[worse]
        margin = (weights * gap).sum() - weights[own] * gap[own]
        m = (beta * ratio[better] - beta * ratio[worse] - margin) / weights[own]
        loss = loss - torch.nn.functional.logsigmoid(m)
    loss.backward()
    return {
        "own": own,
        "beta": beta,
        "weights": listed(weights),
        "rewards": rewards.tolist(),
        "log_ratios": listed(ratio),
        "gradient": listed(log_probs.grad),
    }


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    cases = [
        ("average", None, 1, 0.0, None),
        ("inverse", None, None, 0.5, None),
        ("inverse", "sum", 0, 0.0, None),
        ("inverse", "softmax", 2, 0.0, None),
        ("inverse", None, 1, -4.0, None),
        ("inverse", None, 0, 0.0, 0.01),
        ("delta", None, None, 0.0, None),
        ("delta", None, None, -4.0, None),
        ("delta", "softmax", 2, 0.0, None),
    ]
    result = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seed": SEED,
        "losses": [policy_and_value(generator, b, t, c) for b, t, c in ((1, 1, 0.2), (3, 5, 0.2), (4, 9, 0.1))],
        "advantages": [advantages(generator, g, lam) for g, lam in ((1.0, 0.95), (0.9, 0.5))],
        "drbo": [drbo(generator, 3, s, norm, d, 40, 5, low=low, lead=lead) for s, norm, d, low, lead in cases],
        "gdpo": [gdpo(generator, *shape) for shape in ((1, 2, 2), (3, 4, 8))],
        "modpo": [modpo(generator, *shape) for shape in ((1, 2, 0, 0.1), (3, 8, 1, 0.5), (2, 5, 0, 2.0))],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
