// Export the detections and cells of every image of the open QuPath project as GeoJSON, which
// `cytofm detect STORES --detector import --nuclei FOLDER` reads.
//
// Open the project, then Automate > Script editor, and Run (not "Run for project"). Without
// QuPath's window:
//   QuPath script --project=project.qpproj --args=FOLDER export_nuclei.groovy
// The folder is the first argument, else `nuclei` in the project's folder. Annotations, tiles and
// TMA cores stay behind: they are regions. Needs QuPath 0.4 or later.

import qupath.lib.io.PathIO
import qupath.lib.io.PathIO.GeoJsonExportOptions

def given = binding.hasVariable('args') && args ? args[0] : buildFilePath(PROJECT_BASE_DIR, 'nuclei')
def folder = new File(given as String)
folder.mkdirs()

for (entry in getProject().getImageList()) {
    def nuclei = entry.readHierarchy().getDetectionObjects().findAll { !it.isTile() }
    if (nuclei.isEmpty()) {
        println "${entry.getImageName()}: no detections"
        continue
    }
    def file = new File(folder, entry.getImageName().replaceAll(/[\\\/:*?"<>|]/, '_') + '.geojson')
    PathIO.exportObjectsAsGeoJSON(file, nuclei, GeoJsonExportOptions.FEATURE_COLLECTION)
    println "${file.name}: ${nuclei.size()} nuclei"
}
