//! The instructions that Rust has no safe name for: prefetch, one AES round, eight tags at once. Each has a portable twin
//! that the tests hold equal.
//!
//! And which instructions there are, asked once: the hot lane is compiled twice, for every x86-64 processor ([`Baseline`]) and for
//! those since about 2015 ([`Modern`]). Whoever has an [`Isa`] may use it; what is inlined into [`Isa::run`] is compiled for it, so
//! that no packet meets a branch or a call because of it.

#![allow(unsafe_code)]

use super::hash::Hasher;
use super::index::{Bucket, WAYS};
use super::line::Key;
use super::sync::Ordering;

/// A set of instructions that this processor has.
pub(crate) trait Isa: Copy {
    /// Runs `work`; what of it is inlined is compiled for these instructions.
    fn run<R>(self, work: impl FnOnce() -> R) -> R;
    /// [`Hasher::hash`].
    fn hash(self, hasher: &Hasher, key: &Key) -> u64;
    /// [`tag_mask`].
    fn tag_mask(self, bucket: &Bucket, tag: u32) -> u32;
}

/// What every processor has, and AES where a branch finds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Baseline;

impl Isa for Baseline {
    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }
    #[inline(always)]
    fn hash(self, hasher: &Hasher, key: &Key) -> u64 {
        hasher.hash(key)
    }
    #[inline(always)]
    fn tag_mask(self, bucket: &Bucket, tag: u32) -> u32 {
        tag_mask(bucket, tag)
    }
}

/// AES, AVX2 and the bit instructions that came with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Modern(());

impl Modern {
    /// `None` where this processor lacks any of them.
    pub(super) fn detect() -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", not(any(miri, all(test, any(feature = "loom", feature = "shuttle"))))))]
        {
            use std::arch::is_x86_feature_detected as has;
            let bits = has!("bmi1") && has!("bmi2") && has!("lzcnt") && has!("movbe") && has!("popcnt");
            (bits && has!("aes") && has!("avx2")).then_some(Self(()))
        }
        #[cfg(not(all(target_arch = "x86_64", not(any(miri, all(test, any(feature = "loom", feature = "shuttle")))))))]
        None
    }
}

#[cfg(all(target_arch = "x86_64", not(any(miri, all(test, any(feature = "loom", feature = "shuttle"))))))]
mod modern {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::*;

    impl Isa for Modern {
        #[inline(always)]
        fn run<R>(self, work: impl FnOnce() -> R) -> R {
            // SAFETY: `detect`, which alone makes a `Modern`, found all that `run` is compiled for.
            unsafe { run(work) }
        }
        #[inline(always)]
        fn hash(self, hasher: &Hasher, key: &Key) -> u64 {
            // SAFETY: as above.
            hasher.with(key, |state, key| unsafe { aes_round(state, key) })
        }
        #[inline(always)]
        fn tag_mask(self, bucket: &Bucket, tag: u32) -> u32 {
            // SAFETY: as above.
            unsafe { tag_mask_avx2(bucket, tag) }
        }
    }

    #[target_feature(enable = "aes,avx2,bmi1,bmi2,lzcnt,movbe,popcnt")]
    fn run<R>(work: impl FnOnce() -> R) -> R {
        work()
    }

    /// As [`aes_round`](super::aes_round), for who knows that there is one.
    #[inline]
    #[target_feature(enable = "aes")]
    fn aes_round(state: u128, key: u128) -> u128 {
        // SAFETY: plain bits, equal sizes.
        unsafe { transmute(_mm_aesenc_si128(transmute::<u128, __m128i>(state), transmute::<u128, __m128i>(key))) }
    }

    /// As [`tag_mask`], by two comparisons.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn tag_mask_avx2(bucket: &Bucket, tag: u32) -> u32 {
        let base: *const Bucket = bucket;
        let (low, high): (u32, u32);
        // SAFETY: as in `tag_mask`; each aligned word of an AVX load is one access of the processor. The sign of a word is that of
        // its upper half, which is the tag.
        unsafe {
            asm!(
                "vpcmpeqd {a}, {wanted}, [{p}]", "vpcmpeqd {b}, {wanted}, [{p} + 32]", "vmovmskpd {low:e}, {a}", "vmovmskpd {high:e}, {b}",
                p = in(reg) base, wanted = in(ymm_reg) _mm256_set1_epi32(tag as i32), a = out(ymm_reg) _, b = out(ymm_reg) _,
                low = lateout(reg) low, high = lateout(reg) high,
                options(readonly, nostack, preserves_flags)
            );
        }
        low | high << 4
    }
}

#[cfg(not(all(target_arch = "x86_64", not(any(miri, all(test, any(feature = "loom", feature = "shuttle")))))))]
impl Isa for Modern {
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }
    fn hash(self, hasher: &Hasher, key: &Key) -> u64 {
        hasher.hash(key)
    }
    fn tag_mask(self, bucket: &Bucket, tag: u32) -> u32 {
        tag_mask(bucket, tag)
    }
}

/// Asks for the cache line of `items[index]`, if there is such an item.
#[inline(always)]
pub(super) fn prefetch<T>(items: &[T], index: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads and writes nothing that the program could see and never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(items.as_ptr().wrapping_add(index).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (items, index);
}

/// Bit `n` is set where way `n` of the bucket carries `tag`. A hint: the caller loads the word and looks again.
#[inline(always)]
pub(super) fn tag_mask(bucket: &Bucket, tag: u32) -> u32 {
    #[cfg(all(target_arch = "x86_64", not(any(miri, all(test, any(feature = "loom", feature = "shuttle"))))))]
    {
        use std::arch::asm;
        use std::arch::x86_64::*;
        let base: *const Bucket = bucket;
        let (a, b, c, d): (__m128, __m128, __m128, __m128);
        // SAFETY: reads the 64 bytes of a bucket, which is aligned to 64. Other threads may write its words meanwhile: the
        // loads are in assembly, so they are no data race in the language, and each aligned half of an SSE load is one
        // access of the processor. SSE2 is part of x86-64.
        unsafe {
            asm!(
                "movaps {a}, [{p}]", "movaps {b}, [{p} + 16]", "movaps {c}, [{p} + 32]", "movaps {d}, [{p} + 48]",
                p = in(reg) base, a = out(xmm_reg) a, b = out(xmm_reg) b, c = out(xmm_reg) c, d = out(xmm_reg) d,
                options(readonly, nostack, preserves_flags)
            );
        }
        // SAFETY: arithmetic on registers, by SSE2. The tag is the upper half of a word: lanes 1 and 3.
        let (low, high) = unsafe {
            let wanted = _mm_set1_epi32(tag as i32);
            let tags = |a, b| _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(a, b));
            let mask = |tags| _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(tags, wanted)));
            (mask(tags(a, b)), mask(tags(c, d)))
        };
        (low | high << 4) as u32
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(miri, all(test, any(feature = "loom", feature = "shuttle")))))))]
    tag_mask_portable(bucket, tag)
}

/// As [`tag_mask`], one word after the other.
#[allow(dead_code, reason = "the twin of `tag_mask` where that has instructions of its own")]
pub(super) fn tag_mask_portable(bucket: &Bucket, tag: u32) -> u32 {
    (0..WAYS).fold(0, |mask, way| mask | u32::from((bucket.ways[way].load(Ordering::Relaxed) >> 32) as u32 == tag) << way)
}

/// Tells whether [`aes_round`] may be called on this processor.
pub(super) fn has_aes() -> bool {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    false
}

/// One round of AES encryption (FIPS 197 §5.1): SubBytes, ShiftRows, MixColumns, AddRoundKey.
///
/// # Safety
/// Only where [`has_aes`] said so.
#[inline(always)]
pub(super) unsafe fn aes_round(state: u128, key: u128) -> u128 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::asm;
        use std::arch::x86_64::__m128i;
        use std::mem::transmute;
        // SAFETY: plain bits, equal sizes.
        let (mut block, key) = unsafe { (transmute::<u128, __m128i>(state), transmute::<u128, __m128i>(key)) };
        // In assembly and not by the intrinsic, which could not be inlined into a function without the feature.
        // SAFETY: touches its registers only; that the instruction exists is the caller's promise.
        unsafe { asm!("aesenc {s}, {k}", s = inout(xmm_reg) block, k = in(xmm_reg) key, options(pure, nomem, nostack, preserves_flags)) };
        // SAFETY: as above.
        unsafe { transmute::<__m128i, u128>(block) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    super::hash::aes_round_portable(state, key)
}
