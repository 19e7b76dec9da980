"""Networks of the user's: made from Python or by a factory in a file, tried, and adapted.

A file and a package are read by `factory`; a network of any library that gives a `torch.nn.Module`
(spandrel, timm) is one that a factory returns. `adapted` gives a network the interface of those of
this package, `trial` finds out whether it can be trained, `exported` writes it for ONNX.
"""
