//! R: the only room that draws lots; everything else is told what came.

use std::sync::Arc;

/// Gives a number from 0 up to 1. Tests pass one that they know.
pub type Chance = Arc<dyn Fn() -> f64 + Send + Sync>;

/// Nobody foresees it.
pub fn system() -> Chance {
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    Arc::new(move || {
        let mut bytes = [0; 4];
        // without randomness nothing is encrypted either; and what is drawn here is no secret
        let _ = random.fill(&mut bytes);
        f64::from(u32::from_le_bytes(bytes)) / 2_f64.powi(32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lots_are_from_0_up_to_1_and_not_all_the_same() {
        let chance = system();
        let lots: Vec<f64> = (0..100).map(|_| chance()).collect();
        assert!(lots.iter().all(|lot| (0.0..1.0).contains(lot)), "{lots:?}");
        assert!(lots.iter().any(|lot| *lot < 0.5) && lots.iter().any(|lot| *lot >= 0.5));
    }
}
