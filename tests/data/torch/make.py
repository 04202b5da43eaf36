"""Makes the files beside this one with PyTorch itself; they were made with 1.13.

Run in this folder: python3 make.py
"""

from collections import OrderedDict

import torch

model = torch.nn.Linear(4, 3, bias=True, dtype=torch.bfloat16)
with torch.no_grad():
    model.weight.copy_(torch.arange(12).reshape(3, 4))
    model.bias.copy_(torch.tensor([-1.0, 0.5, 2.0]))

# A module's own state dict: an OrderedDict with a `_metadata` attribute, bfloat16.
state = model.state_dict()
# A Parameter with its attributes, two names for one storage, a view into the middle of a storage.
table = torch.arange(20, dtype=torch.float32).reshape(5, 4)
state["parameter"] = torch.nn.Parameter(torch.tensor([1.5, -2.5], dtype=torch.float16))
state["embed"] = table
state["lm_head"] = table
state["rows"] = table[2:4]
state["scalar"] = torch.tensor(3.25, dtype=torch.float64)
state["ids"] = torch.tensor([[1, -2, 3]], dtype=torch.int64)
state["mask"] = torch.tensor([True, False])
state["empty"] = torch.zeros(0, 7)
# Dimensions of size one may have any stride.
state["column"] = table[:1].transpose(0, 1)[1:3]
torch.save(state, "state_dict.bin")

torch.save(OrderedDict(turned=table.T), "transposed.bin")
torch.save({"x": torch.ones(2)}, "legacy.bin", _use_new_zipfile_serialization=False)
torch.save({"model": {"x": torch.ones(2)}, "epoch": 3}, "nested.bin")
