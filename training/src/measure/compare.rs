//! Comparison of an evaluation's methods: paired gains, gaps to the oracles, regimes.

use std::collections::BTreeMap;

use super::{
    answers::Answer,
    bootstrap::{self, Interval},
    methods::Kind,
    points::Point,
    regime::{Corner, Region, Sweep as Regime, beats_chord, verdicts},
    results::{Gain, MethodFront, Oracle},
    sweep::Column,
};
use crate::rl::balance::Standardiser;

/// A measured method with the answers behind it.
pub struct Swept<'a> {
    /// Measurements over the grid.
    pub front: MethodFront,
    /// Answers of every point of the grid, in one order of prompts and seeds.
    pub answers: Vec<Vec<&'a Answer>>,
    /// Points at the preferences of the columns; empty where the method did not answer them.
    pub extra: Vec<Point>,
}

/// KL to θ_sft of backbones, nats per answer, by run and index.
pub type BackboneKls = BTreeMap<(usize, usize), f64>;

/// Completes the fronts with gains, gaps and verdicts.
pub fn compare(
    mut swept: Vec<Swept<'_>>,
    columns: Vec<(Column, Point)>,
    kls: &BackboneKls,
    objectives: &[String],
    standardiser: &Standardiser,
) -> (Vec<MethodFront>, Vec<Oracle>) {
    let of_kind = |kind: Kind| swept.iter().position(|s| s.front.kind == Some(kind));
    // The first of the single policies.
    let baseline = of_kind(Kind::Rewarded).or_else(|| of_kind(Kind::Policy));
    let gains: Vec<Option<Gain>> = swept
        .iter()
        .map(|own| {
            let base = &swept[baseline?];
            (base.front.method != own.front.method).then(|| gain(own, base, standardiser)).flatten()
        })
        .collect();
    for (own, gain) in swept.iter_mut().zip(gains) {
        let gaps =
            columns.iter().zip(&own.extra).filter(|((column, _), _)| column.run != own.front.run);
        let gaps: Vec<f64> = gaps.map(|((_, oracle), at)| oracle.value() - at.value()).collect();
        own.front.gain = gain;
        own.front.oracle_gap =
            (!gaps.is_empty()).then(|| gaps.iter().sum::<f64>() / gaps.len() as f64);
        if matches!(own.front.kind, Some(Kind::Bone | Kind::Rewarded)) && own.front.alpha == 0.0 {
            own.front.verdicts = verdicts(&regime(own, kls, objectives));
        }
    }
    let oracles = columns.into_iter().enumerate().map(|(index, (column, point))| {
        let gap = |own: &Swept<'_>| {
            let at = own.extra.get(index)?;
            Some((own.front.method.clone(), point.value() - at.value()))
        };
        Oracle { name: column.name, gaps: swept.iter().filter_map(gap).collect(), point }
    });
    let oracles = oracles.collect();
    (swept.into_iter().map(|s| s.front).collect(), oracles)
}

/// The difference of testing rewards, paired by prompt and seed.
fn gain(own: &Swept<'_>, base: &Swept<'_>, standardiser: &Standardiser) -> Option<Gain> {
    let interval = |inside: &dyn Fn(&[f64]) -> bool| -> Option<Interval> {
        let points: Vec<usize> = (0..own.front.points.len())
            .filter(|&index| inside(&own.front.points[index].preference))
            .collect();
        let answers = own.answers.first()?.len();
        let difference = |answer: usize| {
            let each = points.iter().map(|&index| {
                let mu = &own.front.points[index].preference;
                let value =
                    |swept: &Swept<'_>| value(mu, swept.answers[index][answer], standardiser);
                value(own) - value(base)
            });
            each.sum::<f64>() / points.len() as f64
        };
        let differences: Vec<f64> = (0..answers).map(difference).collect();
        bootstrap::crossed(&[differences], bootstrap::RESAMPLES, 1)
    };
    Some(Gain {
        over: base.front.method.clone(),
        all: interval(&|_| true)?,
        interior: interval(&|mu| Region::of(mu) == Region::Interior)?,
    })
}

/// Σ μᵢzᵢ of one answer.
fn value(mu: &[f64], answer: &Answer, Standardiser { mean, std }: &Standardiser) -> f64 {
    let scales = mean.iter().zip(std);
    let each = mu.iter().zip(&answer.rewards).zip(scales);
    each.filter_map(|((mu, r), (m, s))| Some(mu * ((*r)? - m) / s)).sum()
}

fn regime(own: &Swept<'_>, kls: &BackboneKls, objectives: &[String]) -> Regime {
    let points = &own.front.points;
    let inside = points.iter().filter(|p| Region::of(&p.preference) == Region::Interior);
    let interior_kl = inside.filter_map(|p| p.kl).reduce(f64::max);
    let corner = |(index, objective): (usize, &String)| {
        let at =
            points.iter().find(|p| p.preference.get(index).is_some_and(|w| *w > 1.0 - 1e-9))?;
        Some(Corner {
            objective: objective.clone(),
            kl: at.kl,
            backbone_kl: kls.get(&(own.front.run, index)).copied(),
            dominated: at.dominated,
        })
    };
    let preferences: Vec<Vec<f64>> = points.iter().map(|p| p.preference.clone()).collect();
    let rewards: Vec<Vec<f64>> = points.iter().map(|p| p.standardised.clone()).collect();
    Regime {
        r_squared: own.front.r_squared,
        interior_kl,
        corners: objectives.iter().enumerate().filter_map(corner).collect(),
        beats_chord: beats_chord(&preferences, &rewards),
        bones: own.front.kind == Some(Kind::Bone),
    }
}
