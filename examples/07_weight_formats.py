"""Store the same weights in different formats, and see what each costs: bytes, and error against float."""

import torch
from torch import nn

import graphc

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256)).eval()
x = torch.randn(1, 256)
with torch.no_grad():
    expected = model(x)

FORMATS = {
    "f32": "",
    "int8": 'compress{format="linear(bits=8)"},quantize_activations',
    "int4 g32": 'compress{format="linear(bits=4,group=32)"},quantize_activations',
    "int2 g32": 'compress{format="linear(bits=2,group=32)"},quantize_activations',
    "vector, 2 bits": 'compress{format="vector(d=4,codewords=256)"},tabulate',
}
print(f"{'format':16}{'kB of weights':>15}{'error':>10}")
for name, passes in FORMATS.items():
    # The passes of the "float" preset, with the ones that choose the format before the last.
    pipeline = ",".join(filter(None, ("canonicalize,fold_constants", passes, "drop_unused,fuse_operators")))
    artifact = graphc.compile(model, "host", (x,), pipeline=pipeline)
    result = torch.from_numpy(artifact.run(x))
    error = (result - expected).norm() / expected.norm()
    print(f"{name:16}{artifact.size.weights / 1000:15,.0f}{error:10.0%}")
