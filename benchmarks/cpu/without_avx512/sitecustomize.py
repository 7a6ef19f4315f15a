# SPDX-License-Identifier: Apache-2.0
"""Read by every Python that starts with this folder on PYTHONPATH: PyTorch says that the processor has no AVX-512, so that vLLM takes
what it has for processors without."""
import torch.cpu

torch.cpu._is_avx512_supported = torch.cpu._is_avx512_bf16_supported = lambda: False
