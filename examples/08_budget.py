"""Say what may be lost, and let graphc choose a format for every layer; then see all that could have been chosen."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import graphc

digits = load_digits()
images, labels = torch.from_numpy(digits.images / 16).to(torch.float32).flatten(1), torch.from_numpy(digits.target)
train, seen = images[:1200], images[1200:1500]

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(60):
    nn.functional.cross_entropy(model(train), labels[:1200]).backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()


def top1(images, labels):
    """What graphc asks of a metric: a function of `run`, higher is better. Points in %."""
    return lambda run: 100 * float((torch.from_numpy(run(images)).argmax(1) == labels).float().mean())


# The search looks at one part of the data; the promise must hold on another part, too, that it never looked at.
formats = ("linear", "linear(bits=4)", "linear(bits=3)", "vector(d=2,codewords=16)", "vector(d=4,codewords=16)")
shape = {"example_inputs": (images[:300],), "calibration": [train[:300]], "formats": formats, "recovery": 20}
plain = graphc.compile(model, "host", (images[:300],))
small = graphc.compile(
    model,
    "host",
    budget=graphc.Budget(metric_drop=1.5),
    metric=top1(seen, labels[1200:1500]),
    held_back=top1(images[1497:], labels[1497:]),
    **shape,
)
chosen = next(point for point in small.report().front if point["chosen"])
print("points lost, no more than 1.5:", chosen["drop"] <= 1.5 and chosen["drop on held-back data"] <= 1.5)
print("weights at least 4 times smaller:", small.size.weights * 4 <= plain.size.weights)

# The whole front, from the smallest to the original, as a table and a picture.
front = graphc.explore(model, "host", metric=top1(seen, labels[1200:1500]), points=6, **shape)
print("the front's sizes rise:", [p.bytes for p in front.points] == sorted(p.bytes for p in front.points))
print("the columns of its table:", front.to_text().splitlines()[0].split())
with tempfile.TemporaryDirectory() as folder:
    front.plot(Path(folder) / "front.png")
    print("drawn:", [file.name for file in Path(folder).iterdir()])
