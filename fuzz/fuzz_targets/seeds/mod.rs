//! Right inputs that a target makes by itself: what is signed or hashed is found by no chance.

use libfuzzer_sys::fuzzer_mutate;

/// In so many mutations one begins with a seed.
const ONE_IN: u32 = 32;

/// What a mutation begins with: mostly what there is, sometimes a seed, and always when there is nothing.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, chance: u32, seeds: &[Vec<u8>]) -> usize {
    let mut size = size;
    if size <= 1 || chance.is_multiple_of(ONE_IN) {
        let number = usize::try_from(chance / ONE_IN).expect("32 bits fit") % seeds.len();
        let seed = &seeds[number];
        if seed.len() <= max_size {
            data[..seed.len()].copy_from_slice(seed);
            size = seed.len();
        }
        if (chance / ONE_IN / 2).is_multiple_of(2) {
            return size;
        }
    }
    fuzzer_mutate(data, size, max_size)
}
