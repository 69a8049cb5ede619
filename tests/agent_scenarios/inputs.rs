//! Inputs in any order never panic, never lose count, and never leave a deadline behind that is not kept.
