"""Controls: each gives a `motionstream.tracks.TrackSource`."""
