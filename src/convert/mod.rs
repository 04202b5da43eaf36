//! Conversion: carries out a plan in one pass over the source.
