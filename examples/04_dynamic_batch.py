"""One artifact for every batch size and sequence length: dynamic sizes are declared with torch.export.Dim."""

import numpy as np
import torch
from torch import nn
from torch.export import Dim

import graphc


class Tagger(nn.Module):
    """A class for each token: token numbers [batch, length] -> logits [batch, length, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(torch.relu(self.hidden(self.embedding(tokens))))
        return {"logits": logits, "classes": logits.argmax(-1)}


torch.manual_seed(0)
model = Tagger().eval()
artifact = graphc.compile(
    model,
    example_inputs=(torch.zeros(2, 7, dtype=torch.int64),),
    dynamic_shapes=({0: Dim("batch", min=1, max=16), 1: Dim("length", min=1, max=128)},),
)
print("input:", artifact.plan["inputs"][0]["shape"])

for batch, length in ((1, 1), (2, 7), (16, 128)):
    tokens = torch.randint(100, (batch, length))
    result = artifact.run(tokens)  # the model's own structure: a dict
    with torch.no_grad():
        expected = model(tokens)
    same = np.allclose(result["logits"], expected["logits"].numpy(), atol=1e-5)
    print(f"batch {batch}, length {length}: logits {result['logits'].shape}, as torch: {same}")

try:
    artifact.run(torch.zeros(17, 7, dtype=torch.int64))
except graphc.GraphcError as error:
    print(f"error: {error}")
