//! Which record may follow which.

use dwcp_api::Role;

use crate::{RecordKind, Stage};

/// | role | record | allowed after |
/// |---|---|---|
/// | source | `Begin` | nothing, and the VM is not in doubt |
/// | source | `Prepared`, `PreparedPostcopy` | `Begin`, `Prepared` |
/// | source | `Serving` | `Prepared`, `Serving` |
/// | source | `Committed` | `Prepared`, `Serving`, `Committed` |
/// | source | `Aborted` | `Begin`, `Prepared`, `Aborted` |
/// | source | `TakenBack` | `Prepared` |
/// | source | `Told` | `TakenBack` |
/// | destination | `Begin` | nothing |
/// | destination | `Committed` | `Begin`, `Committed` |
/// | destination | `Resumed` | `Committed`, `Resumed` |
/// | destination | `Fetching` | `Begin` |
/// | destination | `Whole` | `Committed`, `Resumed` |
/// | destination | `Refused` | nothing, `Begin`, `Refused`, `Aborted` |
/// | destination | `Aborted` | `Begin`, `Refused`, `Aborted` |
/// | destination | `Yielded` | `Committed`, `Resumed` |
/// | both | `Failed`, `LookedAfter` | anything |
pub(crate) const fn is_allowed(role: Role, stage: Option<Stage>, next: &RecordKind) -> bool {
    use Stage::{Aborted, Begun, Committed, Prepared, Refused, Resumed, Serving, TakenBack};
    match (role, next) {
        (_, RecordKind::Begin { .. }) => stage.is_none(),
        (_, RecordKind::Failed { .. } | RecordKind::LookedAfter) => stage.is_some(),
        (Role::Source, RecordKind::Prepared | RecordKind::PreparedPostcopy) => {
            matches!(stage, Some(Begun | Prepared))
        }
        (Role::Source, RecordKind::Serving) => matches!(stage, Some(Prepared | Serving)),
        (Role::Source, RecordKind::Committed) => {
            matches!(stage, Some(Prepared | Serving | Committed))
        }
        (Role::Source, RecordKind::Aborted { .. }) => {
            matches!(stage, Some(Begun | Prepared | Aborted))
        }
        (Role::Source, RecordKind::TakenBack { .. }) => matches!(stage, Some(Prepared)),
        (Role::Source, RecordKind::Told) => matches!(stage, Some(TakenBack)),
        (Role::Destination, RecordKind::Yielded) => matches!(stage, Some(Committed | Resumed)),
        (Role::Destination, RecordKind::Committed) => matches!(stage, Some(Begun | Committed)),
        (Role::Destination, RecordKind::Resumed) => matches!(stage, Some(Committed | Resumed)),
        (Role::Destination, RecordKind::Fetching { .. }) => matches!(stage, Some(Begun)),
        (Role::Destination, RecordKind::Whole) => matches!(stage, Some(Committed | Resumed)),
        (Role::Destination, RecordKind::Refused) => {
            matches!(stage, None | Some(Begun | Refused | Aborted))
        }
        (Role::Destination, RecordKind::Aborted { .. }) => {
            matches!(stage, Some(Begun | Refused | Aborted))
        }
        (
            Role::Source,
            RecordKind::Refused
            | RecordKind::Resumed
            | RecordKind::Fetching { .. }
            | RecordKind::Whole
            | RecordKind::Yielded,
        )
        | (
            Role::Destination,
            RecordKind::Prepared
            | RecordKind::PreparedPostcopy
            | RecordKind::Serving
            | RecordKind::TakenBack { .. }
            | RecordKind::Told,
        ) => false,
    }
}
