//! Products of strided f32 matrices inside slices.

use gemm::{Parallelism, gemm};

/// A strided matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct View<T> {
    pub data: T,
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<T> View<T> {
    /// A row-major matrix whose rows are `row_stride` apart.
    pub fn strided(data: T, rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// A row-major matrix without gaps.
    pub fn new(data: T, rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Transposed.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// Elements from the first to the last of the matrix.
    fn extent(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// `out ← out·keep + scale · a b`, on this thread.
pub(crate) fn product(
    out: View<&mut [f32]>,
    keep: bool,
    a: View<&[f32]>,
    b: View<&[f32]>,
    scale: f32,
) {
    multiply(out, keep, a, b, scale, Parallelism::None);
}

/// [`product`] on all of rayon's threads.
pub(crate) fn parallel_product(
    out: View<&mut [f32]>,
    keep: bool,
    a: View<&[f32]>,
    b: View<&[f32]>,
    scale: f32,
) {
    multiply(out, keep, a, b, scale, Parallelism::Rayon(0));
}

fn multiply(
    out: View<&mut [f32]>,
    keep: bool,
    a: View<&[f32]>,
    b: View<&[f32]>,
    scale: f32,
    threads: Parallelism,
) {
    assert!(a.rows == out.rows && b.columns == out.columns && a.columns == b.rows);
    assert!(a.extent() <= a.data.len() && b.extent() <= b.data.len());
    assert!(out.extent() <= out.data.len());
    // SAFETY: every index the product touches is below the extents checked above, and `out` is
    // borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm(
            out.rows,
            out.columns,
            a.columns,
            out.data.as_mut_ptr(),
            out.column_stride as isize,
            out.row_stride as isize,
            keep,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}
