//! Differentiable kernels.
