"""Decoders, one file each: skeletons, which an upsampler stands in. The contract is in `segbench.decoders.base`."""
