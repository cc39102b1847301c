"""What a quantized number is: grids, the catalog, bit packing, reference decode."""
