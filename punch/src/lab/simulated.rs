//! The matrix over a simulated network and clock.

use std::{sync::atomic::AtomicBool, time::Duration};

use punch_lab::{Kind, Outcome};

use super::{
    Arguments,
    crew::Crew,
    dials, matrix,
    matrix::{Implementation, Mode, Study},
    progress::Progress,
};
use crate::{
    demo::{self, Behind, Setting},
    dial::Trouble,
    exit::Failure,
};

/// Dials every pair as often as is asked for; `rtt` and `loss` (in percent) are between any two of the three peers.
pub(super) fn run(
    arguments: &Arguments,
    (rtt, loss): (Duration, f64),
    crew: &mut Crew,
) -> Result<Study, Failure> {
    let kinds = arguments.kinds();
    let dials = dials(&kinds, arguments.runs);
    let mut progress = Progress::new("simulated dials", dials.len());
    let outcomes = crew.all(&mut progress, &dials, |(dialer, listener, run), _: &AtomicBool| {
        let [dialer, listener] = [behind(*dialer)?, behind(*listener)?];
        let setting = Setting { dialer, listener, round_trips: [rtt; 3], loss };
        once(&setting, u64::from(*run), arguments.timeout)
    })?;
    let matrices = vec![matrix(Implementation::Punch, &kinds, &dials, outcomes)];
    Ok(Study { mode: Mode::Simulated { rtt, loss }, runs: arguments.runs, matrices })
}

fn once(setting: &Setting, seed: u64, patience: Duration) -> Result<Outcome, Failure> {
    match demo::in_simulated_time(demo::meet(setting, seed, patience))? {
        Ok(met) => Ok(Outcome::Connected { relayed: met.relayed, elapsed: met.elapsed, remote: None }),
        Err(Trouble::Failed { reason, message }) => Ok(Outcome::Failed { reason: reason.into(), message }),
        // Over a network that loses packets, a peer may fail before it could ask for the other.
        Err(Trouble::Program(failure)) => {
            Ok(Outcome::Failed { reason: "not_registered".into(), message: failure.message })
        }
    }
}

/// The simulated NAT of a kind: the same words name both.
fn behind(kind: Kind) -> Result<Behind, Failure> {
    demo::nat(kind.word()).map_err(|error| Failure::error(format!("{kind}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_can_be_simulated() {
        for kind in Kind::ALL {
            let [shown, expected] = [behind(kind).map(|nat| nat.to_string()), {
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
