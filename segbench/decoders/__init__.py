"""Decoders: one file each, on the contract and the skeleton of `segbench.decoders.base`."""
