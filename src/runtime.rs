//! The loop around the core: inboxes by priority, one deadline, dispatch.
