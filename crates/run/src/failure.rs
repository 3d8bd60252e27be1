//! Why a step failed, and whether trying again may help.

use quorate_machine::MachineError;

use crate::kube::ApiError;

#[derive(Clone, Debug)]
pub(crate) struct StepError {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) retryable: bool,
    pub(crate) stopped: bool,
}

impl StepError {
    /// Trying again would not help.
    pub(crate) fn lasting(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            retryable: false,
            stopped: false,
        }
    }

    pub(crate) fn passing(message: impl Into<String>) -> Self {
        Self {
            retryable: true,
            ..Self::lasting(message)
        }
    }

    pub(crate) fn stopped() -> Self {
        Self {
            stopped: true,
            ..Self::lasting("the run was stopped while waiting")
        }
    }

    pub(crate) fn is_retryable(&self) -> bool {
        self.retryable
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<MachineError> for StepError {
    fn from(error: MachineError) -> Self {
        use quorate_machine::ErrorKind::*;
        // A full disk, a missing right or a lost lock is the same a second later.
        let lasting = error.is_unreachable()
            || matches!(
                error.kind,
                NoSpace | NoExec | ReadOnly | PermissionDenied | NoSystemd | LockLost | Invalid | WrongArch { .. }
            );
        Self {
            message: error.to_string(),
            hint: error.hint.clone(),
            retryable: !lasting,
            stopped: false,
        }
    }
}

impl From<ApiError> for StepError {
    fn from(error: ApiError) -> Self {
        Self {
            message: error.to_string(),
            hint: None,
            retryable: error.is_retryable(),
            stopped: false,
        }
    }
}

impl From<crate::etcd::EtcdError> for StepError {
    fn from(error: crate::etcd::EtcdError) -> Self {
        Self::passing(error.to_string())
    }
}
