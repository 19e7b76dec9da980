"""MKD: meta knowledge distillation (Zhu, Chen, Liu), section 3.2.

A knowledge representation network (KRNet) at each distillation point turns the features of
student and teacher into knowledge. It convolves both with the same kernels, which it generates for
each sample from the student's features, corrected by their correlation with the teacher's.
"""

from mkdext.methods.mkd.cases import MKDCase1, MKDCase2, MKDCase3
from mkdext.methods.mkd.krnet import Knowledge, KRNet, MKDOptions, extract
from mkdext.methods.mkd.method import MKD

__all__ = [
    "MKD",
    "KRNet",
    "Knowledge",
    "MKDCase1",
    "MKDCase2",
    "MKDCase3",
    "MKDOptions",
    "extract",
]
