"""The text form of a Graph: `dump` and `parse` are inverses.

    graph      := "graph" (NAME | STRING) inputs "{" line* "return" outputs "}"
    line       := "symbol" NAME "in" "[" INT "," INT "]"
                | "%"NAME "=" "input" ":" type
                | "%"NAME "=" "weight" STRING "#"DIGEST ":" type suffix
                | "%"NAME "=" OPERATOR "(" argument ("," argument)* ")" ":" type suffix
    suffix     := ("@" STRING)? ("group=" INT)?
    type       := DTYPE "[" size ("," size)* "]" | "(" type ("," type)* ")"
    size       := INT | an expression over the symbols
    argument   := (NAME "=")? value
    value      := "%"NAME | INT | FLOAT | STRING | None | True | False | "[" value* "]" | "{" size "}" | DTYPE
                | memory_format.NAME | layout.NAME | device.NAME

`inputs` is the call's pair (args, kwargs) as Python writes it, `outputs` the result's structure. One line a node, the
model's own names: a diff of two dumps shows the change alone. Lines that start with "//" are comments. Weights are
named with the digest of their contents; the tensors themselves are handed to `parse`, or lie beside the text in a
content-addressed folder (`save`, `read`).
"""

from graphc.text.files import read, save
from graphc.text.parsing import parse, resolve
from graphc.text.printing import digest, dump

__all__ = ["digest", "dump", "parse", "read", "resolve", "save"]
