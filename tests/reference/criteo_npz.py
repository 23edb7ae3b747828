"""A small .npz in the form of facebookresearch/dlrm's: python criteo_npz.py FILE"""
import sys

import numpy

n = 21
dense = (numpy.arange(n * 13).reshape(n, 13) * 7 % 50).astype(numpy.int32)
ids = (numpy.arange(n * 26).reshape(n, 26) * 11 % numpy.arange(2, 28)).astype(numpy.int32)
numpy.savez_compressed(sys.argv[1], X_int=dense, X_cat=ids, y=(numpy.arange(n) % 3 == 0).astype(numpy.int32),
                       counts=numpy.arange(2, 28).astype(numpy.int32))
