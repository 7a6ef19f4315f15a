#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/goldens/dequantize.json: random blocks of every GGUF type and their values by the
`gguf` package. Run it to add a type, in an environment of its own:

    python3 -m venv /tmp/gguf && /tmp/gguf/bin/pip install gguf==0.19.0 numpy
    /tmp/gguf/bin/python tests/goldens/make_dequantize.py > tests/goldens/dequantize.json
"""

import base64
import importlib.metadata
import json

import gguf
import numpy

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K",
         "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
ELEMENTS = 512


def make(kind, random):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = []
    while len(blocks) < max(1, ELEMENTS // block):
        raw = random.integers(0, 256, size, dtype=numpy.uint8)
        values = gguf.dequantize(raw.reshape(1, size), kind)
        # Scales are random bits too: those that no quantiser would write are left out.
        if numpy.isfinite(values).all() and 1e-6 < numpy.abs(values).max() < 1e4:
            blocks.append(raw)
    raw = numpy.concatenate(blocks)
    values = gguf.dequantize(raw.reshape(1, -1), kind).astype("<f4").reshape(-1)
    return {"blocks": base64.b64encode(raw.tobytes()).decode(),
            "values": base64.b64encode(values.tobytes()).decode()}


if __name__ == "__main__":
    generator = numpy.random.default_rng(7)
    types = {name: make(getattr(gguf.GGMLQuantizationType, name), generator) for name in TYPES}
    print(json.dumps({"gguf": importlib.metadata.version("gguf"), "types": types}, indent=1))
