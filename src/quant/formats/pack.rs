//! Packs codes of a few bits into bytes.

use std::array;

/// The codes of a block of `N` weights, packed.
pub trait Codes<const N: usize>: bytemuck::Pod {
    /// Bits of a code.
    const BITS: u32;
    /// Packs codes.
    fn pack(codes: &[u8; N]) -> Self;
    /// The inverse of [`Self::pack`].
    fn unpack(&self) -> [u8; N];
}

/// 32 codes of 4 bits: [`nibbles`].
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Nibbles(pub [u8; 16]);

impl Codes<32> for Nibbles {
    const BITS: u32 = 4;

    #[inline(always)]
    fn pack(codes: &[u8; 32]) -> Self {
        Self(nibbles(codes))
    }

    #[inline(always)]
    fn unpack(&self) -> [u8; 32] {
        unpack_nibbles(&self.0)
    }
}

/// 32 codes of 5 bits: [`five_bits`].
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FiveBits {
    /// Bit 4 of each code: bit j is code j's.
    pub high: [u8; 4],
    /// Bits 0 to 3 of each code.
    pub low: [u8; 16],
}

impl Codes<32> for FiveBits {
    const BITS: u32 = 5;

    #[inline(always)]
    fn pack(codes: &[u8; 32]) -> Self {
        let (high, low) = five_bits(codes);
        Self { high, low }
    }

    #[inline(always)]
    fn unpack(&self) -> [u8; 32] {
        unpack_five_bits(self.high, &self.low)
    }
}

/// 256 codes of 4 bits: [`four_bits`].
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct FourBitsK(pub [u8; 128]);

impl Codes<256> for FourBitsK {
    const BITS: u32 = 4;

    #[inline(always)]
    fn pack(codes: &[u8; 256]) -> Self {
        Self(four_bits(codes))
    }

    #[inline(always)]
    fn unpack(&self) -> [u8; 256] {
        unpack_four_bits(&self.0)
    }
}

/// 256 codes of 5 bits: bit 4 of each as [`one_bit`], the others as [`four_bits`].
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FiveBitsK {
    /// Bit 4 of each code.
    pub high: [u8; 32],
    /// Bits 0 to 3 of each code.
    pub low: [u8; 128],
}

impl Codes<256> for FiveBitsK {
    const BITS: u32 = 5;

    #[inline(always)]
    fn pack(codes: &[u8; 256]) -> Self {
        Self { high: one_bit(codes, 4), low: four_bits(codes) }
    }

    #[inline(always)]
    fn unpack(&self) -> [u8; 256] {
        let mut codes = unpack_four_bits(&self.low);
        unpack_one_bit(&self.high, 4, &mut codes);
        codes
    }
}

/// Packs two 4-bit codes per byte: code j in the low half of byte j, code j + 16 in the high half.
///
/// As the formats are defined, the high bits of a code above 15 are not masked, and overlap with those of its
/// neighbour.
#[inline(always)]
pub fn nibbles(codes: &[u8; 32]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for j in 0..16 {
        bytes[j] = codes[j] | codes[j + 16] << 4;
    }
    bytes
}

/// The inverse of [`nibbles`].
#[inline(always)]
pub fn unpack_nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    array::from_fn(|j| if j < 16 { bytes[j] & 15 } else { bytes[j - 16] >> 4 })
}

/// 32 codes of 5 bits: their low four as [`nibbles`], and bit 4 of code j as bit j of a little-endian `u32`.
#[inline(always)]
pub fn five_bits(codes: &[u8; 32]) -> ([u8; 4], [u8; 16]) {
    let (mut high, mut low) = ([0; 4], [0; 32]);
    let (eights, _) = codes.as_chunks::<8>();
    for byte in 0..4 {
        // One bit per byte. The product has the bit of byte j at position j of its highest byte, and nothing carries.
        let bits = u64::from_le_bytes(eights[byte]) >> 4 & 0x0101_0101_0101_0101;
        high[byte] = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
    for j in 0..32 {
        low[j] = codes[j] & 15;
    }
    (high, nibbles(&low))
}

/// The inverse of [`five_bits`].
#[inline(always)]
pub fn unpack_five_bits(high: [u8; 4], low: &[u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(high);
    let low = unpack_nibbles(low);
    array::from_fn(|j| low[j] | ((high >> j & 1) as u8) << 4)
}

/// Returns the codes eight at a time: the functions below shift bytes within words, which vectorises on every target.
#[inline(always)]
fn words(codes: &[u8; 256]) -> &[[u8; 8]; 32] {
    codes.as_chunks().0.first_chunk().expect("256 codes are 32 times eight")
}

/// Shifts each of eight bytes left, and drops the bits that leave the byte.
#[inline(always)]
fn shifted_left(bytes: &[u8; 8], by: u32) -> u64 {
    (u64::from_le_bytes(*bytes) & (0x0101_0101_0101_0101 * (0xff >> by))) << by
}

/// 256 codes of 2 bits: byte l of each half (128 codes, 32 bytes) holds codes l, l + 32, l + 64 and l + 96, lowest first.
#[inline(always)]
pub fn two_bits(codes: &[u8; 256]) -> [u8; 64] {
    let mut bytes = [0; 64];
    let codes = words(codes);
    for (word, bytes) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let at = word / 4 * 16 + word % 4;
        let packed = (0..4).fold(0, |packed, plane| packed | shifted_left(&codes[at + 4 * plane], 2 * plane as u32));
        *bytes = packed.to_le_bytes();
    }
    bytes
}

/// The inverse of [`two_bits`].
#[inline(always)]
pub fn unpack_two_bits(bytes: &[u8; 64]) -> [u8; 256] {
    let mut codes = [0; 256];
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (plane, codes) in codes.chunks_exact_mut(32).enumerate() {
            for l in 0..32 {
                codes[l] = bytes[l] >> (2 * plane) & 3;
            }
        }
    }
    codes
}

/// 256 codes of 4 bits: byte l of each quarter (64 codes, 32 bytes) holds code l in its low half, l + 32 in its high half.
///
/// Only the low four bits of each code are used.
#[inline(always)]
pub fn four_bits(codes: &[u8; 256]) -> [u8; 128] {
    let mut bytes = [0; 128];
    let codes = words(codes);
    for (word, bytes) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let at = word / 4 * 8 + word % 4;
        let low = u64::from_le_bytes(codes[at]) & 0x0f0f_0f0f_0f0f_0f0f;
        *bytes = (low | shifted_left(&codes[at + 4], 4)).to_le_bytes();
    }
    bytes
}

/// The inverse of [`four_bits`].
#[inline(always)]
pub fn unpack_four_bits(bytes: &[u8; 128]) -> [u8; 256] {
    let mut codes = [0; 256];
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        for l in 0..32 {
            codes[l] = bytes[l] & 15;
            codes[l + 32] = bytes[l] >> 4;
        }
    }
    codes
}

/// One bit of each of 256 codes, bit `bit`: that of code 32·p + l is bit p of byte l.
#[inline(always)]
pub fn one_bit(codes: &[u8; 256], bit: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    let codes = words(codes);
    for (word, bytes) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let of_plane = |plane: usize| u64::from_le_bytes(codes[word + 4 * plane]) >> bit & 0x0101_0101_0101_0101;
        *bytes = (0..8).fold(0, |packed, plane| packed | of_plane(plane) << plane).to_le_bytes();
    }
    bytes
}

/// The inverse of [`one_bit`]: sets bit `bit` of the codes from `bytes`.
#[inline(always)]
pub fn unpack_one_bit(bytes: &[u8; 32], bit: u32, codes: &mut [u8; 256]) {
    for (plane, codes) in codes.chunks_exact_mut(32).enumerate() {
        for l in 0..32 {
            codes[l] |= (bytes[l] >> plane & 1) << bit;
        }
    }
}

/// Eight pairs (scale, min) of 6 bits each in 12 bytes, as Q4_K and Q5_K keep them.
///
/// ```text
///  byte 0..4      bits 0-5: scale 0..4    bits 6-7: bits 4-5 of scale 4..8
///  byte 4..8      bits 0-5: min 0..4      bits 6-7: bits 4-5 of min 4..8
///  byte 8..12     bits 0-3: low bits of scale 4..8    bits 4-7: low bits of min 4..8
/// ```
///
/// As the formats are defined, bits above the sixth of pairs 0..4 are not masked.
#[inline(always)]
pub fn six_bit_pairs(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    array::from_fn(|j| match j {
        0..4 => scales[j] | scales[j + 4] >> 4 << 6,
        4..8 => mins[j - 4] | mins[j] >> 4 << 6,
        _ => scales[j - 4] & 15 | mins[j - 4] << 4,
    })
}

/// The inverse of [`six_bit_pairs`].
#[inline(always)]
pub fn unpack_six_bit_pairs(bytes: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let scale = |j: usize| if j < 4 { bytes[j] & 63 } else { bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4 };
    let min = |j: usize| if j < 4 { bytes[j + 4] & 63 } else { bytes[j + 4] >> 4 | bytes[j] >> 6 << 4 };
    (array::from_fn(scale), array::from_fn(min))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::samples::Random;

    #[test]
    fn what_is_packed_unpacks() {
        let mut random = Random::new(3);
        for _ in 0..100 {
            let bytes: [u8; 256] = array::from_fn(|_| random.bits() as u8);
            let few: [u8; 32] = array::from_fn(|i| bytes[i]);

            assert_eq!(unpack_nibbles(&nibbles(&few.map(|b| b & 15))), few.map(|b| b & 15));
            let (high, low) = five_bits(&few.map(|b| b & 31));
            assert_eq!(unpack_five_bits(high, &low), few.map(|b| b & 31));
            assert_eq!(unpack_two_bits(&two_bits(&bytes.map(|b| b & 3))), bytes.map(|b| b & 3));
            assert_eq!(unpack_four_bits(&four_bits(&bytes)), bytes.map(|b| b & 15));
            let mut codes = [0; 256];
            unpack_one_bit(&one_bit(&bytes, 4), 4, &mut codes);
            assert_eq!(codes, bytes.map(|b| b & 16));
            let scales: [u8; 8] = array::from_fn(|i| bytes[i] & 63);
            let mins: [u8; 8] = array::from_fn(|i| bytes[i + 8] & 63);
            assert_eq!(unpack_six_bit_pairs(&six_bit_pairs(&scales, &mins)), (scales, mins));
        }
    }

    #[test]
    fn every_code_has_the_place_that_the_diagrams_give() {
        let few: [u8; 32] = array::from_fn(|i| if i == 3 || i == 18 { 0b1_0101 } else { 0 });
        let (high, low) = five_bits(&few);
        assert_eq!(u32::from_le_bytes(high), 1 << 3 | 1 << 18);
        assert_eq!((low[3], low[2]), (0x05, 0x50));

        let mut codes = [0; 256];
        codes[128 + 64 + 7] = 3;
        assert_eq!(two_bits(&codes)[32 + 7], 3 << 4);
        assert_eq!(four_bits(&codes)[96 + 7], 3);
        assert_eq!(one_bit(&codes, 0)[7], 1 << 6);

        let pairs = six_bit_pairs(&[1, 2, 3, 4, 0x15, 6, 7, 8], &[9, 10, 11, 12, 0x2d, 14, 15, 16]);
        assert_eq!((pairs[0], pairs[4], pairs[8]), (1 | 1 << 6, 9 | 2 << 6, 5 | 13 << 4));
    }
}
