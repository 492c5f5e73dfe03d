"""Figures and tables, drawn from result folders alone. Imports no JAX."""
