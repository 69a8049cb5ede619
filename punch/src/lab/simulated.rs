//! The matrix over a simulated network and clock.

use std::{sync::atomic::AtomicBool, time::Duration};

use libp2p_punch::explain::Explain;
use punch_lab::{Kind, Outcome};

use super::{
    args::Arguments,
    matrix::{Conditions, Implementation, Matrix, Mode, PairDial, Study},
    workers::Workers,
};
use crate::{
    exit::Failure,
    output::Progress,
    simulation::{NatSpec, RoundTrips, Scenario, run_in_simulated_time},
};

/// Dials every pair.
pub(super) fn run(arguments: &Arguments, workers: &mut Workers) -> Result<Study, Failure> {
    let kinds = arguments.kinds();
    let conditions = arguments.conditions();
    let dials = PairDial::all(&kinds, arguments.runs);
    let mut progress = Progress::new("simulated dials", dials.len());
    let outcomes = workers
        .run_all(&mut progress, &dials, |dial, _: &AtomicBool| once(dial, conditions, arguments.timeout))?;
    let matrices = vec![Matrix::of_dials(Implementation::Punch, &kinds, &dials, outcomes)];
    Ok(Study { mode: Mode::Simulated(conditions), runs: arguments.runs, matrices })
}

/// Dials once; the number of the run is the seed.
fn once(dial: &PairDial, conditions: Conditions, limit: Duration) -> Result<Outcome, Failure> {
    let scenario = Scenario {
        dialer: nat_spec(dial.dialer)?,
        listener: nat_spec(dial.listener)?,
        round_trips: RoundTrips::all(conditions.rtt),
        loss: conditions.loss,
    };
    let measured = run_in_simulated_time(scenario.measure(u64::from(dial.run), limit))?;
    Ok(match measured {
        Ok(measurement) => {
            let (relayed, elapsed) = (measurement.is_relayed, measurement.elapsed);
            Outcome::Connected { relayed, elapsed, remote: None }
        }
        Err(failure) => Outcome::Failed { reason: failure.code().into(), message: failure.to_string() },
    })
}

/// Returns the simulated NAT of a kind: the same words name both.
fn nat_spec(kind: Kind) -> Result<NatSpec, Failure> {
    kind.word().parse().map_err(|error| Failure::error(format!("{kind}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_can_be_simulated() {
        for kind in Kind::ALL {
            let [shown, expected] = [nat_spec(kind).map(|nat| nat.to_string()), {
                let words = match kind {
                    Kind::Public => "no NAT",
                    Kind::EimEif => "EIM+EIF, ports kept",
                    Kind::EimAdf => "EIM+ADF, ports kept",
                    Kind::EimApdf => "EIM+APDF, ports kept",
                    Kind::EimApdfOtherPort => "EIM+APDF, ports hashed",
                    Kind::EimApdfBare => "EIM+APDF, ports kept, no firewall",
                    Kind::Double => "two of EIM+APDF, ports kept",
                    Kind::AdmApdf => "ADM+APDF, ports random",
                    Kind::ApdmRandom => "APDM+APDF, ports random",
                    Kind::ApdmSequential => "APDM+APDF, ports sequential",
                };
                Ok(words.to_owned())
            }];
            assert_eq!(shown, expected, "{kind}");
        }
    }
}
