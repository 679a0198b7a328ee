pub struct SimulatedDisk {}
