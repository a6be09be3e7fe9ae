//! A chained CNI plugin that cuts a compromised pod off the network at once, and keeps the scene.
