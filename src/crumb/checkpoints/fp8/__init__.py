"""Directories of 8-bit floats, quant_method fp8 and fbgemm_fp8."""
