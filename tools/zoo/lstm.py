"""Character language model: embedding, two-layer LSTM, linear (ml5's charRNN)."""

from torch import Tensor, nn

LAYERS, HIDDEN, VOCABULARY = 2, 128, 108


class CharacterLSTM(nn.Module):
    """[N, T] int64 tokens and the state h, c (each [2, N, 128]) -> [N, T, 108] logits and the next h, c.

    291,948 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCABULARY, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, LAYERS, batch_first=True)
        self.out = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, tokens: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, (h, c) = self.lstm(self.emb(tokens), (h, c))
        return self.out(x), h, c
