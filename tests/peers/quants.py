"""What gguf-py makes of blocks of every quant type: the digests that tests/tests/quant_oracle.rs compares with.

    pip install gguf==0.19.0 && python3 tests/peers/quants.py

Blocks are random bytes, but for their scales, which are powers of two: then no number is rounded on either side, and
all that is decoded is compared bit for bit.
"""

import hashlib

import gguf
import numpy

BLOCKS = 4096
# Where the half-precision fields of a block are.
HALVES = dict(
    Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q2_K=[80, 82], Q3_K=[108], Q4_K=[0, 2], Q5_K=[0, 2],
    Q6_K=[208], IQ4_NL=[0], IQ4_XS=[0], IQ3_S=[0], IQ3_XXS=[0], IQ2_S=[0], IQ2_XS=[0], IQ2_XXS=[0], MXFP4=[],
    TQ1_0=[52], TQ2_0=[64],
)


def blocks(name, size):
    """The same bytes as `exact_blocks` in the test."""
    out = numpy.empty(BLOCKS * size, numpy.uint8)
    x = 12345
    for i in range(len(out)):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
        out[i] = x >> 24
    out = out.reshape(BLOCKS, size)
    for at in HALVES[name]:
        out[:, at] = 0
        out[:, at + 1] = (8 + out[:, at + 1] % 8) << 2
    if name == "MXFP4":
        out[:, 0] = 100 + out[:, 0] % 32
    return out


for name in HALVES:
    kind = gguf.GGMLQuantizationType[name]
    values = gguf.quants.dequantize(blocks(name, gguf.GGML_QUANT_SIZES[kind][1]), kind).astype("<f4") + numpy.float32(0)
    print(f'    ("{name}", "{hashlib.sha256(values.tobytes()).hexdigest()}"),')
