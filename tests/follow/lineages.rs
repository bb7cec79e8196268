//! Histories that were lost in part: only Esker has them, and says so.
