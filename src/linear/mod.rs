//! Products of matrices in single precision, with the same bits on every CPU and for any number of threads.
//!
//! Libraries of linear algebra choose the order of their sums by the CPU, its caches and the number of threads. What is
//! computed from such sums differs from one machine to the next, and a file that is made from it cannot be made again
//! elsewhere. Here the order is fixed: [`add_products`] sums over 128 terms, and then over those sums.
//!
//! | file        | what                                                       |
//! |-------------|------------------------------------------------------------|
//! | `product`   | the kernel: 32 rows, transposed, times a matrix            |
//! | `transpose` | transposing, several numbers at a time                     |
//! | `view`      | matrices of any shape and orientation: [`add_product`]     |

// An index often runs over several arrays at once.
#![allow(clippy::needless_range_loop)]

mod product;
mod transpose;
mod view;

pub use product::{Column, ROWS, add_products};
pub use transpose::transpose;
pub use view::{View, add_product};
