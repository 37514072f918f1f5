//! Random numbers: one stream of the generator for each subject, on any thread.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The generator of stream `stream` of `seed`.
pub fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// A normally distributed number (Box and Muller, 1958), clipped to three standard deviations, so that no subject is
/// absurd.
pub fn normal(rng: &mut ChaCha8Rng, mean: f64, std: f64) -> f64 {
    // 1 - u lies in (0, 1]: the logarithm is finite.
    let (u, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>() * std::f64::consts::TAU);
    mean + std * ((-2.0 * u.ln()).sqrt() * angle.cos()).clamp(-3.0, 3.0)
}

/// Whether something of probability `p` happens.
pub fn chance(rng: &mut ChaCha8Rng, p: f64) -> bool {
    rng.random::<f64>() < p
}

/// One of `choices`, all equally likely.
pub fn one_of<'a, T: ?Sized>(rng: &mut ChaCha8Rng, choices: &[&'a T]) -> &'a T {
    choices[rng.random_range(0..choices.len())]
}
