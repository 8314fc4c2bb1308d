//! infotext
